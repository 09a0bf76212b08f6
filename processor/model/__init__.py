"""The user's model: its processes as the processor sees them, what runs inside one, and what travels in between."""
