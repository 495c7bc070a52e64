"""Put the agent on hosts and take it away: probe, pure steps, side-by-side releases, rollback, manifest."""
