"""What the people who run it are told: errors they can mend, logs, and the names of metrics. Imports no other room."""
