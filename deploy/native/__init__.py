"""Stack without Docker: RabbitMQ, Redis and an S3 server as ordinary processes of one user."""
