/**
 * Loading: time beside reading the same file from the page cache, and peak memory beside the weights, of the embedded
 * model and of one of its shape in plain floats. `npx tsx test/bench/load.ts` (needs 600 MB in the temporary folder).
 */
import { mkdtempSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { loadAddon } from '../../engine/addon.js'
import type { LoadRequest, Precision } from '../../engine/native.js'
import { measureLoad, measureRead, writePlainModel } from '../support/load-cost.js'
import { cpuDevice, smollm2Request } from '../support/native-model.js'

const ROUNDS = 5
const scratch = mkdtempSync(join(tmpdir(), 'edgeshift-load-'))
const device = loadAddon().openDevice({ ...cpuDevice, kvArenaBytes: 1 << 20 })

async function report(name: string, request: LoadRequest): Promise<void> {
  const [path = ''] = request.files
  const { size } = statSync(path)
  measureRead(path, false)
  const reads: number[] = []
  const fresh: number[] = []
  const loads: number[] = []
  let peak = 0
  let weights = 0
  for (let round = 0; round < ROUNDS; round++) {
    reads.push(measureRead(path, false))
    fresh.push(measureRead(path, true))
    // oxlint-disable-next-line no-await-in-loop -- in turn with the reads
    const cost = await measureLoad(device, request)
    loads.push(cost.milliseconds)
    peak = Math.max(peak, cost.peakBytes - cost.workspaceBytes)
    weights = cost.weightBytes
  }
  const speed = (times: number[]): number => size / 1e6 / Math.min(...times)
  const share = (times: number[]): string => `${((speed(loads) / speed(times)) * 100).toFixed(0)}%`
  const bound = (weights * 1.1) / 2 ** 20 + 256
  console.log(
    `${name}: ${speed(loads).toFixed(2)} GB/s loaded; read ${speed(reads).toFixed(2)} GB/s (${share(reads)}), into new ` +
      `memory ${speed(fresh).toFixed(2)} GB/s (${share(fresh)}); peak ` +
      `${(peak / 2 ** 20).toFixed(0)} MiB for ${(weights / 2 ** 20).toFixed(0)} MiB of weights (at most ${bound.toFixed(0)})`,
  )
}

try {
  const { spec } = smollm2Request('fp16')
  for (const precision of ['fp16', 'int8', 'int4'] as const) {
    // oxlint-disable-next-line no-await-in-loop
    await report(`q4_1 at ${precision}`, smollm2Request(precision, 16))
  }
  for (const type of ['f16', 'bf16', 'f32'] as const) {
    const path = join(scratch, type)
    const request = writePlainModel(path, type, spec)
    const rungs: Precision[] = type === 'f16' ? ['fp16', 'int8', 'int4'] : ['fp16']
    // oxlint-disable-next-line no-await-in-loop
    for (const precision of rungs) await report(`${type} at ${precision}`, { ...request, precision })
    rmSync(path)
  }
} finally {
  rmSync(scratch, { recursive: true })
  await device.close()
}
