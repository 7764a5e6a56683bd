import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { createHash } from 'node:crypto'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { parseConfig } from '../../engine/config/index.js'
import { finiteCheck } from '../../engine/tools/finite.js'
import { inspectCard, measureRounding } from '../../engine/tools/inspect.js'
import { formatInspection } from '../../engine/tools/inspect-text.js'
import { recordHashes, type Verification, verifyModel } from '../../engine/tools/verify.js'
import { formatVerification } from '../../engine/tools/verify-text.js'
import { readModelCard } from '../../engine/registry/index.js'
import { card as ggufCard } from '../support/gguf-cards.js'
import { goldenCard, goldenFolder } from '../support/golden.js'
import { readGgufInTypeScript } from '../support/read-gguf.js'
import { tinyGguf } from '../support/tiny-gguf.js'
import { SMOLLM2_FILE, smollm2Card } from '../support/smollm2.js'

const scratch = mkdtempSync(join(tmpdir(), 'edgeshift-tools-'))
afterAll(() => rmSync(scratch, { recursive: true }))

const { scheduler } = parseConfig('models: [{ id: m, variants: [{ path: x }] }]', 'models.yaml')
const device = (id: string, megabytes: number) => ({ id, budgetBytes: megabytes * 1e6, overheadBytes: 0 })
const quietly = () => undefined

describe('inspect', () => {
  test('the embedded model: storage by module, rungs and where they fit', () => {
    const report = inspectCard(smollm2Card(), { devices: [device('big', 4000), device('small', 300)], scheduler })
    expect(report).toMatchObject({
      format: 'gguf',
      architecture: 'llama',
      licence: 'apache-2.0',
      layers: 30,
      contextLength: 8192,
      chatTemplate: true,
      kvBytesPerToken: 23_040,
      notices: [],
      problems: [],
    })
    const q = report.storage.find(({ module }) => module === 'q')
    expect(q).toMatchObject({ storage: 'q4_1', count: 30, layers: '0-29' })
    expect(report.rungs.map(({ precision, origin }) => `${precision} ${origin}`)).toEqual([
      'fp16 dequantized',
      'int8 dequantized',
      'int4 stored',
    ])
    expect(report.rungs.map(({ devices }) => devices['big'])).toEqual(['fits', 'fits', 'fits'])
    expect(report.rungs[0]?.devices['small']).toMatch(/^needs .* small has .* free$/)
  })

  test('a checkpoint of mixed precision, and what keeps it from being served', () => {
    const report = inspectCard(goldenCard('gptq/w4_dynamic_mixed'), { devices: [], scheduler })
    const stored = Object.fromEntries(report.storage.map(({ module, storage }) => [module, storage]))
    expect(stored).toMatchObject({ k: 'f16', q: 'gptq 4 bit, groups of 128', down: 'gptq 8 bit, groups of 64' })
    expect(formatInspection(report)).toContain('gptq 8 bit, groups of 64 in layers 0')
  })

  test('a model whose tokenizer is missing is described all the same', () => {
    const folder = join(scratch, 'mute')
    mkdirSync(folder)
    for (const name of ['config.json', 'model.safetensors'])
      copyFileSync(join(goldenFolder('plain/qwen2'), name), join(folder, name))
    const card = goldenCard('plain/qwen2')
    const report = inspectCard(
      {
        ...card,
        readText: () => {
          throw new Error('no tokenizer')
        },
      },
      { devices: [], scheduler },
    )
    expect(report.problems).toEqual(['no tokenizer'])
    expect(formatInspection(report)).toContain('problem: no tokenizer')
  })

  test('what has been measured, what the hub said of the files, what is rounded', async () => {
    const folder = join(scratch, 'measured')
    cpSync(goldenFolder('plain/qwen2'), folder, { recursive: true })
    const measured = { perplexity: 18.5, reference_perplexity: 18.25, text: 'some text' }
    writeFileSync(join(folder, 'quality.json'), JSON.stringify({ rungs: { int4: measured } }))
    const downloads = join(folder, '.cache', 'huggingface', 'download')
    mkdirSync(downloads, { recursive: true })
    const hash = 'ab'.repeat(32)
    writeFileSync(join(downloads, 'model.safetensors.metadata'), `commit\n${hash}\n0\n`)
    const report = inspectCard(readModelCard(folder, readGgufInTypeScript), { devices: [], scheduler })
    expect(report.files).toMatchObject([{ hashes: [{ hash, from: 'hub' }] }])
    expect(report.rungs.map(({ quality }) => quality?.perplexity)).toEqual([undefined, undefined, 18.5])
    await measureRounding(report, async (precision) => (precision === 'int8' ? 0.004 : 0.0712))
    const text = formatInspection(report)
    expect(text).toContain(`${hash}  model.safetensors (as downloaded)`)
    expect(text).toMatch(/int8 .* derived, rounding takes 0\.400%/)
    expect(text).toMatch(/int4 .* rounding takes 7\.120%, perplexity 18\.5 \(reference 18\.25, some text\)/)
    await measureRounding(report, () => Promise.reject(new Error('no memory')))
    expect(report.problems).toEqual(['int8: no memory', 'int4: no memory'])
  })

  test.each([
    ['not JSON', '{', /quality\.json: the file is not JSON/],
    ['an unknown rung', '{ "rungs": { "int2": {} } }', /quality\.json: rungs: Unrecognized key/],
    ['a perplexity of nothing', '{ "rungs": { "int4": { "perplexity": 0 } } }', /rungs\.int4\.perplexity: Too small/],
    ['too long', ' '.repeat(70_000), /has 70000 bytes; at most 65536 are read/],
  ])('a quality file that is %s is a notice', (_, content, message) => {
    const folder = join(scratch, 'quality')
    cpSync(goldenFolder('plain/qwen2'), folder, { recursive: true })
    writeFileSync(join(folder, 'quality.json'), content)
    const { quality, notices } = readModelCard(folder, readGgufInTypeScript)
    expect(quality).toEqual({})
    expect(notices).toEqual([expect.stringMatching(message)])
  })

  test('blocks that have no linear form are named', () => {
    const isQueryOrKey = (name: string) => /attn_[qk]\.weight/.test(name)
    const file = tinyGguf({}, (tensors) =>
      tensors.map((tensor) => {
        const [rows = 0, inputs = 0] = tensor.shape
        return isQueryOrKey(tensor.name) ? { ...tensor, type: 'mxfp4', bytes: (rows * inputs * 17) / 32 } : tensor
      }),
    )
    const { notices } = ggufCard(file, join(scratch, 'x.gguf'))
    expect(notices).toEqual([expect.stringMatching(/^2 matrices of mxfp4, which has no linear form: rounded to int8/)])
    expect(ggufCard(tinyGguf(), join(scratch, 'x.gguf')).notices).toEqual([])
  })
})

describe('verify', () => {
  test('the embedded model: its hash, every tensor, the largest magnitude', async () => {
    let last = 0
    const result = await verifyModel(SMOLLM2_FILE, readGgufInTypeScript, (done, total) => {
      last = done / total
    })
    expect(result.problems).toEqual([])
    expect(result.tensors).toBe(272)
    expect(result.largest).toEqual({ tensor: 'blk.27.ffn_gate.weight', magnitude: 9.25 })
    expect(result.files[0]?.sha256).toBe('b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53')
    expect(last).toBe(1)
  })

  test('values that are not finite, in the scales of a quantized module too', async () => {
    const folder = new URL('../fixtures/hostile/gptq/scales_nan', import.meta.url).pathname
    const { problems } = await verifyModel(folder, readGgufInTypeScript, quietly)
    expect(problems).toEqual(['tensor "model.layers.0.self_attn.q_proj.scales" (f16) holds NaN'])
  })

  test('hashes: of the download metadata and of the links in a hub cache', async () => {
    const folder = join(scratch, 'pulled')
    cpSync(goldenFolder('plain/llama_fp16'), folder, { recursive: true })
    const metadata = join(folder, '.cache', 'huggingface', 'download')
    mkdirSync(metadata, { recursive: true })
    writeFileSync(join(metadata, 'model.safetensors.metadata'), `${'c'.repeat(40)}\n${'0'.repeat(64)}\n1\n`)
    const config = readFileSync(join(folder, 'config.json'))
    const blob = createHash('sha1').update(`blob ${config.length}\0`).update(config).digest('hex')
    copyFileSync(join(folder, 'config.json'), join(scratch, blob))
    rmSync(join(folder, 'config.json'))
    symlinkSync(join(scratch, blob), join(folder, 'config.json'))
    const { files, problems } = await verifyModel(folder, readGgufInTypeScript, quietly)
    const matches = Object.fromEntries(
      files.map(({ file, known }) => [file.slice(folder.length + 1), known.map((entry) => entry.matches)]),
    )
    expect(matches).toMatchObject({ 'model.safetensors': [false], 'config.json': [true], 'tokenizer.json': [] })
    expect(problems).toEqual([
      `${folder}/model.safetensors: its hash is not the one it was downloaded with (${'0'.repeat(64)})`,
    ])
  })

  describe('a record', () => {
    const verify = (path: string): Promise<Verification> => verifyModel(path, readGgufInTypeScript, quietly)

    /** A folder of its own whose hashes have been recorded. */
    async function recorded(name: string): Promise<string> {
      const folder = join(scratch, name)
      cpSync(goldenFolder('plain/llama_fp16'), folder, { recursive: true })
      const result = await verify(folder)
      expect(formatVerification(result)).toContain('--record writes these hashes down')
      recordHashes(result)
      return folder
    }

    test('is found by the next verify, by inspect, and by sha256sum', async () => {
      const folder = await recorded('recorded')
      const { files, problems, changes } = await verify(folder)
      expect([...problems, ...changes]).toEqual([])
      expect(files.length).toBeGreaterThan(2)
      expect(files.flatMap(({ known }) => known.map(({ from, matches }) => `${from} ${matches}`))).toEqual(
        files.map(() => 'record true'),
      )
      const hash = createHash('sha256')
        .update(readFileSync(join(folder, 'model.safetensors')))
        .digest('hex')
      const report = inspectCard(readModelCard(folder, readGgufInTypeScript), { devices: [], scheduler })
      expect(formatInspection(report)).toContain(`${hash}  model.safetensors (as recorded)`)
      expect(readFileSync(join(folder, 'SHA256SUMS'), 'utf8')).toContain(`${hash}  model.safetensors\n`)
      expect(readdirSync(folder).filter((name) => name.startsWith('SHA256SUMS'))).toEqual(['SHA256SUMS'])
    })

    test('tells of one flipped bit, a missing file and a new one', async () => {
      const folder = await recorded('changed')
      const weights = join(folder, 'model.safetensors')
      const bytes = readFileSync(weights)
      bytes[bytes.length - 2] = (bytes.at(-2) ?? 0) ^ 1
      writeFileSync(weights, bytes)
      rmSync(join(folder, 'generation_config.json'))
      writeFileSync(join(folder, 'chat_template.jinja'), '{{ messages }}')
      const result = await verify(folder)
      expect(result.problems).toEqual([])
      expect(result.changes).toEqual([
        `${folder}/generation_config.json: is in the record and missing`,
        expect.stringMatching(/model\.safetensors: its content is not what was recorded \([0-9a-f]{64}\)$/),
        `${folder}/chat_template.jinja: is not in the record`,
      ])
      expect(formatVerification(result)).toMatch(/model\.safetensors \(.*, NOT as recorded\)/)
      recordHashes(result)
      expect((await verify(folder)).changes).toEqual([])
    })

    test('of a .gguf alone lies beside it', async () => {
      const file = join(scratch, 'alone.gguf')
      copyFileSync(new URL('../fixtures/gguf/q2_k/model.gguf', import.meta.url).pathname, file)
      recordHashes(await verify(file))
      expect((await verify(file)).files[0]?.known).toMatchObject([{ from: 'record', matches: true }])
      const bytes = readFileSync(file)
      bytes[bytes.length - 1] = (bytes.at(-1) ?? 0) ^ 0x80
      writeFileSync(file, bytes)
      expect((await verify(file)).changes).toEqual([expect.stringContaining('alone.gguf: its content is not what')])
    })

    test('that cannot be written is an error and leaves nothing behind', async () => {
      const folder = await recorded('unwritable')
      const result = await verify(folder)
      // Nobody may make files there, root included.
      const elsewhere = { ...result, recordFile: '/proc/edgeshift.sha256' }
      expect(() => recordHashes(elsewhere)).toThrow(/ENOENT|EACCES|EPERM|EROFS/)
      rmSync(join(folder, 'SHA256SUMS'))
      mkdirSync(join(folder, 'SHA256SUMS'))
      expect(() => recordHashes(result)).toThrow(/EISDIR|ENOTEMPTY|EEXIST/)
      expect(readdirSync(folder).filter((name) => name.startsWith('SHA256SUMS.'))).toEqual([])
    })

    test('elsewhere, for a folder that cannot be written to', async () => {
      const folder = join(scratch, 'read-only')
      cpSync(goldenFolder('plain/llama_fp16'), folder, { recursive: true })
      const recordFile = join(scratch, 'read-only.sha256')
      recordHashes(await verifyModel(folder, readGgufInTypeScript, quietly, recordFile))
      writeFileSync(join(folder, 'config.json'), `${readFileSync(join(folder, 'config.json'), 'utf8')} `)
      const { changes } = await verifyModel(folder, readGgufInTypeScript, quietly, recordFile)
      expect(changes).toEqual([expect.stringContaining('config.json: its content is not what was recorded')])
      expect(existsSync(join(folder, 'SHA256SUMS'))).toBe(false)
    })

    test.each([
      ['a garbled one', 'nonsense\n', /SHA256SUMS: line 1 is not a SHA-256 and a file name/],
      ['one that is too long', 'x'.repeat(2 ** 20 + 1), /SHA256SUMS: has 1048577 bytes/],
    ])('%s is refused by verify; the model is served with a notice', async (_, content, message) => {
      const folder = join(scratch, 'garbled')
      cpSync(goldenFolder('plain/llama_fp16'), folder, { recursive: true })
      writeFileSync(join(folder, 'SHA256SUMS'), content)
      await expect(verify(folder)).rejects.toThrow(message)
      const { notices, hashes } = readModelCard(folder, readGgufInTypeScript)
      expect(notices).toEqual([expect.stringMatching(message)])
      expect(hashes).toEqual([[]])
    })

    test('names no file outside the folder', async () => {
      const folder = join(scratch, 'outside')
      cpSync(goldenFolder('plain/llama_fp16'), folder, { recursive: true })
      recordHashes(await verify(folder))
      const file = join(folder, 'SHA256SUMS')
      const line = (name: string): string => `${'0'.repeat(64)}  ${name}\n`
      writeFileSync(
        file,
        readFileSync(file, 'utf8') + ['../x.json', '/etc/passwd', 'a/b.json', '..'].map(line).join(''),
      )
      const { changes, files } = await verify(folder)
      expect(changes).toEqual([])
      expect(files.every((report) => report.file.startsWith(`${folder}/`))).toBe(true)
    })
  })

  test.each<[string, number[], number]>([
    ['f16', [0x3c00, 0xc000], 2],
    ['f16', [0x7bff, 0xfbff], 65_504],
    ['f16', [0x0001], 2 ** -24],
    ['f16', [0x7c00], Infinity],
    ['f16', [0xfe00], Number.NaN],
    ['bf16', [0x3f80, 0xc040], 3],
    ['bf16', [0xff80], Infinity],
    ['bf16', [0x7fc0], Number.NaN],
  ])('%s %j', (type, halves, largest) => {
    expect(finiteCheck(type)?.largest(Buffer.from(Uint16Array.from(halves).buffer))).toBe(largest)
  })

  test('f32, f64, fp8, block scales; types without floats are not looked at', () => {
    const f32 = (...values: number[]) => finiteCheck('f32')?.largest(Buffer.from(Float32Array.from(values).buffer))
    const f64 = (...values: number[]) => finiteCheck('f64')?.largest(Buffer.from(Float64Array.from(values).buffer))
    expect([f32(-3, 2), f32(1, -Infinity), f32(Number.NaN, 1)]).toEqual([3, Infinity, Number.NaN])
    expect([f64(-3, 2), f64(Number.NaN, 1)]).toEqual([3, Number.NaN])
    expect(finiteCheck('f8_e4m3')?.largest(Buffer.of(0x7e, 0xb8))).toBe(448)
    expect(finiteCheck('f8_e4m3')?.largest(Buffer.of(0xff))).toBeNaN()
    const q40 = Buffer.alloc(36, 0xff)
    q40.writeUInt16LE(0x3c00, 0)
    q40.writeUInt16LE(0x4000, 18)
    expect(finiteCheck('q4_0')?.largest(q40)).toBe(2)
    expect(finiteCheck('i32')).toBeUndefined()
  })
})
