/**
 * Unloads a model while the write of its repacked file waits (held-write.cpp), and lets that go on only then:
 *   HELD_FILE=FILE HELD=FIFO GO=FIFO LD_PRELOAD=LIBRARY node --import tsx test/support/unload-beside-write.ts
 * Prints how the save ended; never ends where the unload waits for the write.
 */
import { readFile, writeFile } from 'node:fs/promises'
import { loadAddon } from '../../engine/addon.js'
import { smollm2Request } from './native-model.js'

const { HELD_FILE: path = '', HELD: held = '', GO: go = '' } = process.env
const device = loadAddon().openDevice({ kind: 'cpu', index: 0, threads: 2, kvArenaBytes: 1 << 20 })
const model = await device.loadModel(smollm2Request('int4', 16))
const saved = model.savePacked({ path, key: 'k' }).then(
  () => 'written',
  (error: unknown) => String(error),
)
await readFile(held)
await model.unload()
await writeFile(go, '')
console.log(await saved)
await device.close()
