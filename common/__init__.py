"""What gateway and processor must agree on: the job store, its keys and states, settings, logs, metrics, probes."""
