"""A headless Chromium for tests of pages. Without it, these tests are skipped with the reason."""

import shutil

import pytest

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if program is None:
        pytest.skip("there is no Chromium (on Debian: apt-get install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="the dev extra has playwright")
    with api.sync_playwright() as playwright:
        # Chromium's own sandbox needs rights that root in a container does not have.
        options = {"executable_path": program, "args": ["--no-sandbox", "--disable-dev-shm-usage"]}
        try:
            browser = playwright.chromium.launch(**options)
        except api.Error as error:  # such as Ubuntu's program, which only names a snap to install
            pytest.skip(f"{program} does not start: {error.message.splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Return a function that opens a file; its options are those of a browser's context.

    After the test, the page must have asked for nothing but itself, and have run without an error.
    """
    contexts, requests, forbidden, errors = [], [], [], []

    def visit(path, *, before="", **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("request", lambda request: requests.append((request.url, path.as_uri())))
        page.on("requestfailed", lambda request: forbidden.append((request.failure, request.url)))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(dialog.message))
        if before:
            page.add_init_script(before)
        page.goto(path.as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    inside = ("data:", "blob:")
    left = [url for url, own in requests if url != own and not url.startswith(inside)]
    # What the page's policy forbids, a test's own try, is listed but not sent.
    assert [url for url in left if ("csp", url) not in forbidden] == []
    assert errors == []
