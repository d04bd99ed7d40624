"""Networks that published metrics are defined by; their weights come from files that the user names."""
