"""The phantom's world: patients, what is wrong with them, and what their X-rays look like."""
