"""The processes of a run: who they are, how they begin together and end together.

What several processes tell each other about a run is `sttts_jax.distributed`; nothing here but `together` knows JAX.
"""
