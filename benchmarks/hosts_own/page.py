from pathlib import Path
PAGE = Path("x")
def rendered(): return ""
