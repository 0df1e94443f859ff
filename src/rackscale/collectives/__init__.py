"""How long a collective takes on a network of two tiers: NVLink inside a domain, a fabric between domains."""
