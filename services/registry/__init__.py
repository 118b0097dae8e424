"""The registry: keeps membership from heartbeats, and answers for the whole over HTTP."""
