/** The program's log where standard error takes nothing, or takes it slowly. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, existsSync, openSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'

const root = fileURLToPath(new URL('../../', import.meta.url))
const FULL = '/dev/full'

/** A process that runs `body` with an open log; says "ready" when it has. */
function logging(body: string, stderr: number | 'pipe'): ChildProcess {
  const script = `
    import { write } from 'node:fs'
    import { openLog } from './gateway/log.ts'
    const { logger, flush } = openLog('info')
    process.on('SIGTERM', () => { flush(); process.exit(7) })
    const idle = setInterval(() => undefined, 1000)
    ${body}
    console.log('ready')`
  const args = ['--import', 'tsx', '--input-type=module', '-e', script]
  return spawn(process.execPath, args, { cwd: root, stdio: ['ignore', 'pipe', stderr] })
}

/** Runs `use` with a standard error on a full disk. */
async function withFullDisk(body: string, use: (child: ChildProcess) => Promise<void>): Promise<void> {
  const full = openSync(FULL, 'w')
  const child = logging(body, full)
  closeSync(full)
  try {
    await use(child)
  } finally {
    child.kill('SIGKILL')
  }
}

describe.skipIf(!existsSync(FULL))(`a log on a full disk (skipped where there is no ${FULL})`, () => {
  it('does not end the program, nor keep it from ending', async () => {
    // More than is collected: written at once, and failed like the write after it.
    const body = `
      logger.info('x'.repeat(9000))
      await new Promise((resolve) => write(2, 'x', () => setImmediate(resolve)))
      for (let i = 0; i < 1000; i++) logger.fatal('y'.repeat(9000))`
    await withFullDisk(body, async (child) => {
      const exited = once(child, 'exit')
      expect(await Promise.race([once(child.stdout ?? child, 'data').then(String), exited])).toBe('ready\n')
      child.kill('SIGTERM')
      expect(await exited).toEqual([7, null])
    })
  })

  it('that fills at the end does not keep the program from ending', async () => {
    await withFullDisk(`logger.info('only in the buffer'); process.exit(3)`, async (child) => {
      expect(await once(child, 'exit')).toEqual([3, null])
    })
  })
})

/** What a process has logged when it has ended. */
async function linesOf(child: ChildProcess): Promise<{ i?: number; lost?: number; msg: string }[]> {
  let text = ''
  child.stderr?.setEncoding('utf8').on('data', (piece: string) => (text += piece))
  await once(child, 'close')
  return text
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
}

describe('the log', () => {
  it('writes every line once, in order, whatever the reader takes at a time', async () => {
    const child = logging(`for (let i = 0; i < 3000; i++) logger.info({ i }, 'é'.repeat(200)); process.exit(0)`, 'pipe')
    expect((await linesOf(child)).map(({ i }) => i)).toEqual(Array.from({ length: 3000 }, (_, i) => i))
  })

  it('says how many lines it lost while its reader took none', async () => {
    // 6 MB before the first of them can be written, then another line when that is done.
    const child = logging(
      `for (let i = 0; i < 1500; i++) logger.info({ i }, 'x'.repeat(4000))
       flush()
       logger.info('later')
       process.exit(0)`,
      'pipe',
    )
    const lines = await linesOf(child)
    const kept = lines.filter(({ i }) => i !== undefined).length
    expect(lines.at(-1)?.msg).toBe('later')
    expect(lines.at(-2)).toMatchObject({ level: 40, lost: 1500 - kept })
    expect(kept).toBeGreaterThan(900)
    expect(kept).toBeLessThan(1500)
  })
})
