"""HTTP the way both services serve it: uvicorn with our limits and JSON errors, probes, and the containers' health check."""
