import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { readModelCard } from '../../engine/registry/index.js'
import { hubAt } from '../../engine/tools/hub.js'
import { pullModel, type PullRequest } from '../../engine/tools/pull.js'
import { verifyModel } from '../../engine/tools/verify.js'
import { goldenFolder } from '../support/golden.js'
import { cutAfter, type Fault, startHub, type TestHub } from '../support/hub-server.js'

const NAME = 'someone/tiny'
const source = goldenFolder('plain/llama_bf16_sharded')
const FILES = Object.fromEntries(readdirSync(source).map((name) => [name, readFileSync(join(source, name))]))

let root: string
let hub: TestHub | undefined
/** Called at the next progress. */
let waiting: (() => void)[]
const received = () => new Promise<void>((resolve) => void waiting.push(resolve))
const wakeWaiting = () => {
  for (const wake of waiting.splice(0)) wake()
}
beforeEach(() => {
  waiting = []
  root = mkdtempSync(join(tmpdir(), 'edgeshift-pull-'))
})
afterEach(async () => {
  await hub?.close()
  hub = undefined
  rmSync(root, { recursive: true })
})

interface Options {
  files?: Record<string, Buffer>
  fault?: Fault
  listed?: Record<string, object>
  request?: Partial<PullRequest>
}

async function pull({ files = FILES, request = {}, ...faults }: Options = {}): Promise<string> {
  hub ??= await startHub(NAME, files, faults)
  return pullModel({
    hub: hubAt(hub.url, {}),
    name: NAME,
    revision: 'main',
    root,
    maxBytes: 1e9,
    gguf: undefined,
    retryDelay: () => 0,
    progress: wakeWaiting,
    signal: new AbortController().signal,
    ...request,
  })
}

const CONTINUED = /^bytes=[1-9]\d*-$/

const noGguf = () => {
  throw new Error('no GGUF is expected here')
}

const isWhole = (folder: string, name: string) =>
  readFileSync(join(folder, name)).equals(FILES[name] ?? Buffer.alloc(0))

describe('pull', () => {
  test('brings a whole model to its place, byte for byte, with the hashes that verify compares', async () => {
    const extra = { 'onnx.bin': Buffer.from('x'), 'adapter_model.safetensors': Buffer.from('x') }
    const seen: number[] = []
    const folder = await pull({
      files: { ...FILES, ...extra },
      request: { progress: (done, total) => void seen.push(done / total) },
    })
    expect(folder).toBe(join(root, NAME))
    const names = readdirSync(folder).filter((name) => name !== '.cache')
    expect(names.toSorted()).toEqual(Object.keys(FILES).toSorted())
    expect(names.filter((name) => !isWhole(folder, name))).toEqual([])
    expect(readModelCard(folder, noGguf).architecture).toBe('llama')
    const { files, problems } = await verifyModel(folder, noGguf, () => undefined)
    expect(problems).toEqual([])
    expect(files.map(({ known }) => known)).toEqual(
      files.map(() => [{ hash: expect.any(String), from: 'hub', matches: true }]),
    )
    expect(seen.at(-1)).toBe(1)
    expect(seen).toEqual(seen.toSorted((a, b) => a - b))
  })

  test('goes on where a cut connection left it, in the same run', async () => {
    const folder = await pull({ fault: cutAfter(50_000, received) })
    const shard = 'model-00001-of-00002.safetensors'
    expect(isWhole(folder, shard)).toBe(true)
    const ranges = hub?.asked.filter(([file]) => file === shard).map(([, range]) => range)
    expect(ranges?.length).toBeGreaterThan(4)
    expect(ranges?.slice(1)).toEqual(ranges?.slice(1).map(() => expect.stringMatching(CONTINUED)))
  })

  test('and in the next run', async () => {
    let cuts = 0
    const fault: Fault = (request, response, content) =>
      content.length > 100_000 && cuts < 6 ? cutOrRefuse(cuts++)(request, response, content) : false
    await expect(pull({ fault })).rejects.toThrow(/kB of .* are kept; the next pull goes on from there/)
    expect(readdirSync(root)).toEqual(['someone'])
    const before = hub?.asked.length ?? 0
    const folder = await pull()
    expect(hub?.asked[before]?.[1]).toMatch(CONTINUED)
    expect(readModelCard(folder, noGguf).parameters).toBe(246_400)
    expect(readdirSync(join(root, 'someone'))).toEqual(['tiny'])
  })

  test('starts a file anew when the server does not continue it', async () => {
    let first = true
    const fault: Fault = (request, response, content) => {
      if (first && content.length > 100_000) {
        first = false
        return cutAfter(50_000, received)(request, response, content)
      }
      response.end(content)
      return true
    }
    const folder = await pull({ fault })
    const shard = 'model-00001-of-00002.safetensors'
    expect(isWhole(folder, shard)).toBe(true)
  })

  test('removes a file with the wrong hash and says so', async () => {
    const fault: Fault = (_, response, content) => {
      const wrong = Buffer.from(content)
      wrong[wrong.length - 1] = (wrong.at(-1) ?? 0) ^ 1
      response.end(wrong)
      return true
    }
    await expect(pull({ fault })).rejects.toThrow(
      /: the hash is [0-9a-f]{40}, the hub says [0-9a-f]{40}; the file was removed/,
    )
    await hub?.close()
    hub = undefined
    expect(await pull()).toBe(join(root, NAME))
  })

  test('stops at a file that grows beyond its announced size', async () => {
    const fault: Fault = (_, response, content) => {
      response.end(Buffer.concat([content, content]))
      return true
    }
    await expect(pull({ fault })).rejects.toThrow('more than the')
  })

  test('checks the budget before the first byte', async () => {
    await expect(pull({ request: { maxBytes: 1000 } })).rejects.toThrow(
      /someone\/tiny has 5\d\d kB; the budget is 1\.00 kB/,
    )
    expect(hub?.asked).toEqual([])
  })

  test('checks the disk before the first byte', async () => {
    const listed = {
      'model-00001-of-00002.safetensors': { lfs: { oid: '0'.repeat(64), size: 2 ** 52, pointerSize: 1 } },
    }
    await expect(pull({ listed, request: { maxBytes: Infinity } })).rejects.toThrow(/needs .* more; .* are free/)
    expect(hub?.asked).toEqual([])
  })

  test('names that could leave the folder are refused, and files of that kind are not fetched', async () => {
    for (const name of ['../x', 'a/b/c', '/etc', 'a/..', '.hidden/x', 'a b', ''])
      await expect(pull({ request: { name } })).rejects.toThrow("is not a model's name")
    const listed = { 'config.json': { path: '../../config.json' } }
    await hub?.close()
    hub = undefined
    await pull({ listed })
    expect(hub).toBeDefined()
    expect(readdirSync(root)).toEqual(['someone'])
    expect(readdirSync(join(root, NAME))).not.toContain('config.json')
  })

  test('an unknown model, a hub that is not there, a folder that is there already', async () => {
    await expect(pull({ request: { name: 'someone/else' } })).rejects.toThrow('has no model someone/else')
    const url = hub?.url ?? ''
    await hub?.close()
    await expect(pull({ request: { hub: hubAt(url, {}) } })).rejects.toThrow(
      /cannot be reached \(.*ECONNREFUSED.*\)\. Offline, copy the model's folder to models\/someone\/tiny by hand/,
    )
    hub = undefined
    await pull()
    await expect(pull()).rejects.toThrow('is there already')
  })

  test('chooses a GGUF by a part of its name', async () => {
    const files = {
      'm-Q4_0.gguf': Buffer.from('four'),
      'm-Q8_0.gguf': Buffer.from('eight'),
      'README.md': Buffer.from(''),
    }
    await expect(pull({ files })).rejects.toThrow('choose one with --gguf: m-Q4_0.gguf (4 B), m-Q8_0.gguf (5 B)')
    const folder = await pull({ request: { gguf: 'q8' } })
    expect(readdirSync(folder).toSorted()).toEqual(['.cache', 'README.md', 'm-Q8_0.gguf'])
  })

  test('ends at once when it is told to stop', async () => {
    const stop = new AbortController()
    const fault: Fault = (_, response, content) => {
      response.setHeader('content-length', content.length)
      response.write(content.subarray(0, 10), () => stop.abort(new Error('told to stop')))
      return true
    }
    await expect(pull({ fault, request: { signal: stop.signal } })).rejects.toThrow('told to stop')
  })

  test('the command ends, and nothing of it goes on, when it is terminated', async () => {
    const fault: Fault = (_, response, content) => {
      response.setHeader('content-length', content.length)
      response.write(content.subarray(0, 10), () => child.kill('SIGTERM'))
      return true
    }
    hub = await startHub(NAME, FILES, { fault })
    const cli = fileURLToPath(new URL('../../gateway/cli/main.ts', import.meta.url))
    const args = ['--import', 'tsx', cli, 'pull', NAME, '--endpoint', hub.url, '--models', root]
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'ignore', 'pipe'] })
    let told = ''
    child.stderr.setEncoding('utf8').on('data', (text: string) => (told += text))
    // Closed when the last process that holds its standard error has ended.
    expect(await once(child, 'close')).toEqual([1, null])
    expect(told).toContain('stopped; the next pull goes on from here')
  })
})

/** The first connection brings 50,000 bytes, the others none. */
function cutOrRefuse(cut: number): Fault {
  return cut === 0
    ? cutAfter(50_000, received)
    : (_, response) => {
        response.destroy()
        return true
      }
}
