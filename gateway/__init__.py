"""The gateway: takes predictions in over HTTP, tells their ends over HTTP and WebSocket. It never imports a model."""
