"""Names that a file system takes and that addresses, shells or SQL give a meaning of their own."""

from hypothesis import strategies as st

LISTED = (
    "a b",
    "what?x=1",
    "50%",
    "p%20c",
    "a#1",
    "a&b;c+d",
    "it's",
    'so "called"',
    "back\\slash",
    "-dash",
    "größe",
    "日本",
    "😀",
    "e\u0301",
    "a:b@c",
    "[x]{y}<z>",
    "$HOME `x` *",
    "%2e%2e",
    "~t",
)

names = st.one_of(
    st.sampled_from(LISTED),
    st.text(
        st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="/"), min_size=1, max_size=30
    ).filter(lambda name: name not in (".", "..") and len(name.encode()) < 200),
)
"""Names of files and folders, without control characters, which are refused."""
