"""Connections to the server: which server it is, how it is reached, and what its errors mean."""
