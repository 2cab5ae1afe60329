from jaxcxr.data import reports

BOTH = ("impression", "findings")


def lines(*text: str) -> str:
    return "\n".join(text) + "\n"


def prompt(report: str, sections: tuple[str, ...]) -> str | None:
    found = reports.folded(report)
    return next((found[name] for name in sections if name in found), None)


FULL = lines(
    "                                 FINAL REPORT",
    " EXAMINATION:  CHEST (PA AND LAT)",
    " ",
    " INDICATION:  ___ year old with cough.",
    " ",
    " FINDINGS:  Lungs are clear.",
    " No effusion:  none seen.",
    " ",
    " IMPRESSION:",
    " ",
    " No acute",
    "   process.",
)


def test_sections_in_order_with_lower_case_names():
    assert [name for name, _ in reports.parse(FULL)] == [
        "preamble",
        "examination",
        "indication",
        "findings",
        "impression",
    ]
    assert prompt(FULL, BOTH) == "No acute process."
    assert prompt(FULL, ("findings", "impression")) == "Lungs are clear. No effusion: none seen."


def test_header_needs_a_newline_and_a_space():
    for margin in ("", "\t"):
        text = FULL.replace("\n IMPRESSION:", f"\n{margin}IMPRESSION:")
        assert "impression" not in dict(reports.parse(text)), repr(margin)
    bare = "\n".join(line.strip() for line in FULL.splitlines())
    assert [name for name, _ in reports.parse(bare)] == ["full report"]
    assert prompt(bare, BOTH) is None


def test_header_needs_capitals_and_a_colon_followed_by_space():
    assert prompt(" X\n Impression:  Clear.\n", BOTH) is None
    assert prompt(" X\n IMPRESSION  Clear.\n", BOTH) is None
    assert prompt(" X\n IMPRESSION:Clear.\n", BOTH) is None
    assert prompt(" X\n FINDINGS AND IMPRESSION:  Clear.\n", BOTH) == "Clear."
    assert prompt(" X\n IMPRESSIONS:  Clear.\n", BOTH) == "Clear."
    assert prompt(" X\n IMPRESION:  Clear.\n", BOTH) == "Clear."


def test_addendum_stands_above_and_the_report_below_it_counts():
    addendum = lines(" ADDENDUM", " IMPRESSION:  Corrected by telephone.", " ", " " + "_" * 40, "")
    assert prompt(addendum + FULL, BOTH) == "No acute process."
    # The addendum's own impression ends at the line of underscores.
    below = addendum + lines("  FINAL REPORT", " Chest is unchanged.")
    assert prompt(below, BOTH) == "Corrected by telephone."


def test_empty_impression_falls_back_to_findings():
    for ending in (" IMPRESSION:\n", " IMPRESSION:", " IMPRESSION: \n \n", " IMPRESSION:  ___\n"):
        assert prompt(lines("", " FINDINGS:  Clear lungs.", " ") + ending, BOTH) == "Clear lungs."


def test_header_directly_below_an_empty_header_is_body():
    text = lines("", " FINDINGS:", " CHEST, PA AND LATERAL: Clear.", " ", " IMPRESSION: Normal.")
    assert prompt(text, ("findings",)) == "CHEST, PA AND LATERAL: Clear."
    assert prompt(text, ("impression",)) == "Normal."


def test_last_paragraph_only_where_neither_section_is_and_only_if_asked_for():
    text = lines("  FINAL REPORT", " INDICATION:  Cough.", " ", " The lungs", " are clear.", " ", " No effusion.")
    assert prompt(text, BOTH) is None
    assert prompt(text, (*BOTH, "last_paragraph")) == "The lungs are clear. No effusion."
    assert "last_paragraph" not in dict(reports.parse(FULL))
    assert prompt("Chest. Heart.\n", (*BOTH, "last_paragraph")) is None


def test_windows_line_ends_make_no_difference():
    assert reports.parse(FULL.replace("\n", "\r\n")) == reports.parse(FULL)


def test_fold_drops_deidentified_spans_and_white_space():
    assert reports.fold("  Compared to ___,\n\n  on ___ at (___), tube\tis  ___.\n") == "Compared to, on at, tube is."
    assert reports.fold("___ ____") == ""
    assert reports.fold("2 cm, 38°C") == "2 cm, 38°C"


def test_fold_drops_what_a_mark_leaves_of_a_word_or_a_sentence():
    assert reports.fold("Normal chest x-XXXX.") == "Normal chest x."
    assert reports.fold("A XXXX-year-old woman, a ___-year-old man.") == "A year-old woman, a year-old man."
    assert reports.fold("Compared to XXXX, XXXX, and XXXX/XXXX/XXXX.") == "Compared to, and."
    assert reports.fold("No effusion. XXXX XXXX. Heart, XXXX.") == "No effusion. Heart."
    assert reports.fold("XXXX. Heart XXXX (XXXX) is large") == "Heart is large"
    assert reports.fold("XXXX, XXXX.") == reports.fold("___.") == ""
    assert reports.fold("At 12:30, XXX and an AXXIS: see e.g. x_y.") == "At 12:30, XXX and an AXXIS: see e.g. x_y."


def test_header_that_states_the_view_opens_findings():
    for header in ("PORTABLE CHEST", "AP VIEW OF THE CHEST", "PA AND LATERAL", "TWO VIEWS"):
        assert prompt(f"REPORT\n {header}:  Clear.\n", BOTH) == "Clear.", header
    for header in ("COMPARISON CHEST RADIOGRAPH", "INDICATION", "TECHNIQUE"):
        assert prompt(f"REPORT\n {header}:  Old film.\n", BOTH) is None, header
