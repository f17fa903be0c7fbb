"""Kinguin webhooks as Kafka streams. The rooms are the packages below this one; `docs/architecture.md` is the map."""
