from jaxcxr.errors import one_line


def test_what_a_message_quotes_is_one_line_that_can_be_printed():
    assert one_line(ValueError("a\n  b\u2028c")) == "ValueError: a b c"
    assert one_line("half \ud800") == "half \\ud800"
    assert one_line("x" * 10_000) == "x" * 300
