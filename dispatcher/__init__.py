"""A durable task dispatcher on one Postgres. Start with ARCHITECTURE.md beside this file."""
