"""The contract between the services: what they say to each other, and where they keep things."""
