"""Sources, cards, verification and signing of packs: see the roadmap in the documentation."""
