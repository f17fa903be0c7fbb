"""Topics, files and imports → topics, files, consumers, rebuilt state: planned first, resumable, proven at the end."""
