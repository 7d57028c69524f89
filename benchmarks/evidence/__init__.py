"""Which memory is worth its bytes: small models trained with each, exported, and scored through their bundles."""
