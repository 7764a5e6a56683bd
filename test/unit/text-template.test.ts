import { fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { afterEach, expect, test } from 'vitest'
import { TemplateRenderer } from '../../gateway/text/template-renderer.js'

const LIMITS = { timeoutMs: 300, maxLength: 10_000, maxWaiting: 4 }
const LOOP = '{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}'

const open: TemplateRenderer[] = []
function renderer(source: string, limits = LIMITS): TemplateRenderer {
  const made = new TemplateRenderer(source, { bos_token: '<s>' }, limits)
  open.push(made)
  return made
}
afterEach(async () => {
  await Promise.all(open.splice(0).map((one) => one.close()))
})

test('renders with the constants, in the order asked', async () => {
  const template = renderer('{{ bos_token }}{{ messages[0].content }}')
  const render = (content: string) => template.render({ messages: [{ content }] })
  expect(await Promise.all(['a', 'b', 'c'].map(render))).toEqual(['<s>a', '<s>b', '<s>c'])
})

test('what the template raises is the answer', async () => {
  const template = renderer('{{ raise_exception("roles must alternate") }}')
  await expect(template.render({})).rejects.toMatchObject({
    code: 'template_failed',
    message: 'the chat template failed: roles must alternate',
    param: 'messages',
  })
})

test('a loop without end is stopped; the chats behind it are answered', async () => {
  const template = renderer(`{% if messages[0].content == "loop" %}${LOOP}{% endif %}ok`)
  await template.compile()
  const hanging = template.render({ messages: [{ content: 'loop' }] })
  const behind = template.render({ messages: [{ content: 'x' }] })
  await expect(hanging).rejects.toMatchObject({ code: 'template_failed', message: /took more than 300 ms/ })
  expect(await behind).toBe('ok')
})

test.each([
  '{% for i in range(1000000000) %}{% endfor %}',
  '{% set n = namespace(l=["x"]) %}{% for i in range(60) %}{% set n.l = n.l + n.l %}{% endfor %}',
  '{% set n = namespace(s="xxxxxxxx") %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s | upper }}',
])('memory is bounded: %s', async (source) => {
  const template = renderer(source, { ...LIMITS, timeoutMs: 15_000 })
  await expect(template.render({})).rejects.toMatchObject({ code: 'template_failed' })
})

test('an endless result is refused', async () => {
  const template = renderer('{% for i in range(20000) %}x{% endfor %}')
  await expect(template.render({})).rejects.toMatchObject({ code: 'template_failed', message: /20000 characters/ })
})

test('a template that does not compile is found out at the start', async () => {
  await expect(renderer('{% if %}').compile()).rejects.toMatchObject({ code: 'template_failed' })
  await expect(renderer('{{ "'.repeat(50_000)).compile()).rejects.toMatchObject({ code: 'template_failed' })
})

test.each([
  '{{ messages.constructor.constructor("return process")().exit(1) }}',
  '{{ messages["__proto__"]["constructor"]["constructor"]("return process")().exit(1) }}',
  '{{ "".constructor.constructor("return process")().exit(1) }}',
  '{{ self.__init__.__globals__.os.popen("id").read() }}',
  '{% include "/etc/passwd" %}',
  '{% import "os" as os %}{{ os.environ }}',
])('a template reaches nothing outside: %s', async (source) => {
  await expect(renderer(source).render({ messages: [{ content: 'x' }] })).rejects.toMatchObject({
    code: 'template_failed',
  })
})

test('the process ends with its parent, also in an endless render', async () => {
  const program = fileURLToPath(new URL('../../gateway/text/template-process.mjs', import.meta.url))
  const child = fork(program, [], { env: {}, execArgv: [], stdio: ['pipe', 'ignore', 'ignore', 'ipc'] })
  child.send({ source: LOOP, constants: {}, maxLength: 100 })
  await once(child, 'message')
  child.send({})
  // What the death of the parent does: its end of the pipe closes.
  child.stdin?.destroy()
  expect(await once(child, 'exit')).toEqual([null, 'SIGKILL'])
})

test('the queue is bounded, and closing fails what is in it', async () => {
  const template = renderer(LOOP, { ...LIMITS, timeoutMs: 60_000 })
  await template.compile()
  const jobs = Array.from({ length: 6 }, () => template.render({}).catch((error: unknown) => error))
  expect(await jobs[5]).toMatchObject({ code: 'queue_full' })
  await template.close()
  expect(await Promise.all(jobs.slice(0, 5))).toMatchObject(
    Array.from({ length: 5 }, () => ({ code: 'shutting_down' })),
  )
  await expect(template.render({})).rejects.toMatchObject({ code: 'shutting_down' })
})
