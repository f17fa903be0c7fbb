"""A sender that behaves like Kinguin, and a witness that works out on its own what must come of it. Imports no other room."""
