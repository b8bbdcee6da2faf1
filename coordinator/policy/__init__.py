"""Who takes part in a round, with which emulator level. One file per policy; `types` says what a policy is."""
