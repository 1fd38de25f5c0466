def test_nothing():
    import engine
    assert engine.VERSION.startswith("0.30")
