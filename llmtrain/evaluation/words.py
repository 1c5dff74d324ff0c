"""Words for baselines that know no model: of any language, and of identifiers their parts."""

import re

_WORD = re.compile(
    r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+"  # of camelCase and snake_case the parts
    r"|\d+"
    r"|[぀-ヿ㐀-鿿가-힣]"  # characters of scripts without spaces stand alone
    r"|[^\W\d_A-Za-z぀-ヿ㐀-鿿가-힣]+"
    r"|[^\w\s]"
)


def words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]
