"""RabbitMQ: the queues, a connection that heals, events on it, and its management API."""
