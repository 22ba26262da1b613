"""What lies on the node for prepared claims: records, shares, CDI specs, the library."""
