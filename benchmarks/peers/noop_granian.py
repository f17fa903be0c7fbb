"""The reference for granian: a Falcon ASGI application that reads the body and answers 204. Run by granian's own command."""

import falcon
import falcon.asgi


class Noop:
    """Keeps nothing."""

    async def on_get(self, _req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Answer that somebody is here."""
        resp.status = falcon.HTTP_204

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Answer 204 without having done anything."""
        await req.stream.read()
        resp.status = falcon.HTTP_204


app = falcon.asgi.App()
app.add_route("/webhooks", Noop())
