import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { formatKeys } from '../../gateway/cli/keys.js'
import { createKey, revokeKey } from '../../gateway/keys/edit.js'
import { parseKeyFile } from '../../gateway/keys/key-file.js'
import { digestOf } from '../../gateway/keys/secret.js'
import { loadKeyFile } from '../../gateway/keys/watch.js'

const MODELS = ['fake', 'other']
const HASH = 'a'.repeat(64)

/** The faults of a file of keys, without the file's name. */
function faults(text: string): string[] {
  try {
    parseKeyFile(text, 'keys.yaml')
    return []
  } catch (error) {
    return String(error instanceof Error ? error.message : error)
      .split('\n')
      .map((line) => line.replace('keys.yaml:', ''))
  }
}

describe('the key file', () => {
  it.each([
    [
      'an unknown key',
      `keys: [{ id: a, name: n, sha256: ${HASH}, model: [fake] }]`,
      /1:.*unknown key; did you mean "models"\?/,
    ],
    ['a missing hash', 'keys: [{ id: a, name: n }]', /keys\[0\]\.sha256: missing/],
    ['a key instead of its hash', 'keys: [{ id: a, name: n, sha256: es_a_b }]', /expected 64 hexadecimal digits/],
    ['a rate of nothing', `keys: [{ id: a, name: n, sha256: ${HASH}, requests_per_minute: 0 }]`, /requests_per_minute/],
    [
      'an id twice',
      `keys:\n- { id: a, name: n, sha256: ${HASH} }\n- { id: a, name: m, sha256: ${'b'.repeat(64)} }`,
      /^3:.*key id "a" is used twice/,
    ],
    ['no list', 'keys:', /keys: .*list/],
    ['an empty file', '', /./],
  ])('with %s is refused with place and reason', (_name, text, fault) => {
    expect(faults(text).join('\n')).toMatch(fault)
  })

  it('gives the defaults of least right', () => {
    const [key] = parseKeyFile(`keys: [{ id: a, name: n, sha256: ${HASH} }]`, 'keys.yaml')
    expect(key).toEqual({ id: 'a', name: 'n', sha256: HASH, priority_ceiling: 0, admin: false })
  })
})

describe('commands on keys', () => {
  let folder: string
  let file: string
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'es-keys-'))
    file = join(folder, 'keys.yaml')
  })
  afterEach(() => rmSync(folder, { recursive: true }))

  it('make a key whose hash alone is kept, in a file that only its owner reads', () => {
    const text = createKey(file, MODELS, 'laptop', { models: ['fake'], admin: true })
    const [entry] = loadKeyFile(file, MODELS).entries
    expect(entry).toMatchObject({
      name: 'laptop',
      models: ['fake'],
      admin: true,
      sha256: digestOf(text).toString('hex'),
    })
    expect(readFileSync(file, 'utf8')).not.toContain(text.slice(-43))
    expect(statSync(file).mode & 0o777).toBe(0o600)
  })

  it("keep the file's mode, whatever the umask", () => {
    createKey(file, MODELS, 'one', {})
    chmodSync(file, 0o664)
    const umask = process.umask(0o077)
    createKey(file, MODELS, 'two', {})
    process.umask(umask)
    expect(statSync(file).mode & 0o777).toBe(0o664)
  })

  it('change or make the file that a link names, and leave the link', () => {
    const link = join(folder, 'link.yaml')
    symlinkSync('keys.yaml', link)
    createKey(link, MODELS, 'one', {})
    createKey(link, MODELS, 'two', {})
    revokeKey(link, 'one')
    expect(loadKeyFile(file, MODELS).entries).toMatchObject([{ name: 'two' }])
    expect(lstatSync(link).isSymbolicLink()).toBe(true)
  })

  describe.skipIf(process.getuid?.() !== 0)("on another user's file (skipped where this is not root)", () => {
    const OTHER = 12_345
    beforeEach(() => {
      createKey(file, MODELS, 'one', {})
      createKey(file, MODELS, 'two', {})
      chownSync(file, OTHER, OTHER)
    })

    it('leave it to that user', () => {
      revokeKey(file, 'one')
      expect(statSync(file)).toMatchObject({ uid: OTHER, gid: OTHER })
      expect(statSync(file).mode & 0o777).toBe(0o600)
    })

    it('are refused where they cannot, and change nothing', () => {
      const before = readFileSync(file, 'utf8')
      chmodSync(file, 0o644)
      chmodSync(folder, 0o777)
      process.seteuid?.(OTHER + 1)
      try {
        expect(() => revokeKey(file, 'one')).toThrow(/owner and mode cannot be kept.*run this as its owner/)
      } finally {
        process.seteuid?.(0)
      }
      expect(readFileSync(file, 'utf8')).toBe(before)
      expect(existsSync(`${file}.new`)).toBe(false)
    })
  })

  it('keep comments and the other keys', () => {
    createKey(file, MODELS, 'one', {})
    writeFileSync(
      file,
      readFileSync(file, 'utf8').replace('    name: one', '    name: one # the first\n    priority_ceiling: 3'),
    )
    createKey(file, MODELS, 'two', { requests_per_minute: 5 })
    expect(readFileSync(file, 'utf8')).toContain('# the first')
    expect(revokeKey(file, 'two').name).toBe('two')
    expect(loadKeyFile(file, MODELS).entries.map(({ name, priority_ceiling }) => [name, priority_ceiling])).toEqual([
      ['one', 3],
    ])
  })

  it('leave a file without keys readable and take keys again', () => {
    createKey(file, MODELS, 'one', {})
    revokeKey(file, 'one')
    expect(loadKeyFile(file, MODELS).entries).toEqual([])
    createKey(file, MODELS, 'two', {})
    expect(loadKeyFile(file, MODELS).entries).toHaveLength(1)
  })

  it('change nothing when they are refused', () => {
    createKey(file, MODELS, 'one', {})
    const before = readFileSync(file, 'utf8')
    expect(() => createKey(file, MODELS, 'one', {})).toThrow(/key name "one" is used twice/)
    expect(() => createKey(file, MODELS, 'two', { models: ['none'] })).toThrow(/no model "none"/)
    expect(() => revokeKey(file, 'three')).toThrow(/no key has the id or name "three"/)
    writeFileSync(`${file}.new`, '')
    expect(() => createKey(file, MODELS, 'two', {})).toThrow(/another command is at work/)
    expect(readFileSync(file, 'utf8')).toBe(before)
  })

  it('refuse a new key for a model that nobody serves, and go on where an old key names one', () => {
    expect(() => createKey(file, MODELS, 'one', { models: ['fakes'] })).toThrow(/no model "fakes".*did you mean "fake"/)
    createKey(file, MODELS, 'one', { models: ['fake', 'other'] })
    const left = ['fake']
    createKey(file, left, 'two', {})
    const { entries, remarks } = loadKeyFile(file, left)
    expect(entries.map(({ name }) => name)).toEqual(['one', 'two'])
    expect(remarks).toEqual([expect.stringMatching(/keys\.yaml:\d+:\d+: keys\[0\]\.models\[1\]: no model "other"/)])
    expect(revokeKey(file, 'one').name).toBe('one')
    expect(loadKeyFile(file, left).remarks).toEqual([])
  })

  it('list what each may do', () => {
    createKey(file, MODELS, 'one', { requests_per_minute: 60, models: ['fake'] })
    expect(formatKeys(loadKeyFile(file, MODELS).entries).split('\n')[1]).toMatch(
      /^[0-9a-f]{12} {2}one +fake +60 +- +- +- +1 +0 +- +no$/,
    )
  })
})
