"""Web pages of this package, shut: only their own files run, nothing is asked elsewhere, no other page shows them."""

from importlib import resources

from fastapi import FastAPI, Response

KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI, folder: str) -> None:
    """Show `folder`'s page.html at `/`, and the files it is made of beside it."""
    files = {path.name: path.read_bytes() for path in resources.files("openafm.serving").joinpath(folder).iterdir()}

    def add(path: str, name: str) -> None:
        """Serve one of the files at a path, with the media type of its suffix."""
        kind = KINDS[name.rpartition(".")[2]]

        @app.get(path)
        async def file() -> Response:
            """Send the file as it was when the server started."""
            return Response(files[name], media_type=kind, headers=HEADERS)

    for name in files:
        add("/" if name == "page.html" else f"/{name}", name)
