"""What a user wants to know before a long run: what it would do and take (--dry_run), and which step (--find_lr)."""
