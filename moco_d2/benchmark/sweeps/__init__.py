"""The papers' sweeps of the pretext side, with our points beside theirs."""
