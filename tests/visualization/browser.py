"""A headless Chromium, driven through its DevTools pipe with the standard library alone."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')


def find_browser() -> str | None:
    """Path of the browser: $OCCFORGE_BROWSER, or what is installed; None without one."""
    return os.environ.get('OCCFORGE_BROWSER') or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page. ::

    with Browser(find_browser()) as page:
        page.open(Path('page.html'))
        page.run('1 + 1')
    """

    def __init__(self, program: str, size=(1200, 700)):
        self.program, self.size = program, size
        self.requests: list[str] = []  # what the page asked for, its own file included
        self.errors: list[str] = []
        self.loaded = False

    def __enter__(self):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, ours = os.pipe()
        theirs, from_browser = os.pipe(), None
        from_browser, answers = theirs

        def place_pipes():  # the browser reads commands from 3 and answers on 4
            os.dup2(to_browser, 200)
            os.dup2(answers, 201)
            os.dup2(200, 3)
            os.dup2(201, 4)

        self.process = subprocess.Popen(
            [
                self.program, '--headless=new', '--no-sandbox', '--remote-debugging-pipe', '--no-first-run',
                '--use-angle=swiftshader', '--enable-unsafe-swiftshader', '--disable-dev-shm-usage',
                '--disable-background-networking', f'--user-data-dir={self.profile.name}', 'about:blank',
            ],
            preexec_fn=place_pipes, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(answers)
        self.commands = os.fdopen(ours, 'wb', buffering=0)
        self.answers = os.fdopen(from_browser, 'rb', buffering=0)
        self.pending, self.number, self.session = b'', 0, None
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self.session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Network'):
            self.call(f'{domain}.enable')
        width, height = self.size
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=False)
        return self

    def __exit__(self, *error):
        self.commands.close()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.answers.close()
        self.profile.cleanup()

    def _message(self) -> dict:
        while b'\0' not in self.pending:
            chunk = self.answers.read(1 << 16)
            if not chunk:
                raise RuntimeError(f'{self.program} ended with {self.process.poll()}')
            self.pending += chunk
        message, _, self.pending = self.pending.partition(b'\0')
        return json.loads(message)

    def call(self, method: str, **parameters) -> dict:
        self.number += 1
        message = dict(id=self.number, method=method, params=parameters)
        if self.session is not None:
            message['sessionId'] = self.session
        self.commands.write(json.dumps(message).encode() + b'\0')
        while True:
            answer = self._message()
            self.loaded |= answer.get('method') == 'Page.loadEventFired'
            if answer.get('method') == 'Network.requestWillBeSent':
                self.requests.append(answer['params']['request']['url'])
            if answer.get('method') == 'Runtime.exceptionThrown':
                self.errors.append(json.dumps(answer['params']['exceptionDetails'])[:400])
            if answer.get('id') == self.number:
                if 'error' in answer:
                    raise RuntimeError(f'{method}: {answer["error"]}')
                return answer['result']

    def open(self, path) -> None:
        self.loaded = False
        self.call('Page.navigate', url=Path(path).resolve().as_uri())
        while not self.loaded:
            self.call('Runtime.evaluate', expression='0')
            time.sleep(0.05)

    def run(self, script: str):
        """The value of a JavaScript expression; promises are waited for."""
        answer = self.call('Runtime.evaluate', expression=script, awaitPromise=True, returnByValue=True)
        if 'exceptionDetails' in answer:
            raise RuntimeError(f'{script}: {answer["exceptionDetails"]}')
        return answer['result'].get('value')

    def drag(self, start, end) -> None:
        """Moves the pressed pointer from one pixel of the page to another."""
        for kind, (x, y) in (('mousePressed', start), ('mouseMoved', end), ('mouseReleased', end)):
            self.call(
                'Input.dispatchMouseEvent', type=kind, x=x, y=y, button='left', buttons=int(kind != 'mouseReleased'),
                clickCount=1,
            )  # fmt: skip

    def picture(self):
        """(H, W, 3) uint8 of what the page shows."""
        import cv2
        import numpy as np

        content = base64.b64decode(self.call('Page.captureScreenshot', format='png')['data'])
        return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
