"""A fetch: plan what differs, assemble it into one mpack, hand it on by URL."""
