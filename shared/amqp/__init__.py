"""RabbitMQ: the queues, a connection that reconnects by itself, a bus for events, and the management API."""
