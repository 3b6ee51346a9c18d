"""Fuzzing: mutated images through the decoder, generated requests through the OpenAPI document."""
