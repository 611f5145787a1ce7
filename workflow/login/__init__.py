"""What runs on the login node: plans, launches, follows, publishes; never imports torch."""
