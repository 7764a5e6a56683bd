/** The device that tests with whole engines run on: the CPU, or with EDGESHIFT_TEST_DEVICE=cuda the first GPU. */

import { loadAddon } from '../../engine/addon.js'

/** One device of a configuration. */
export interface TestMemory {
  kind: 'cpu' | 'cuda'
  id: string
  /** What it may use. */
  gigabytes: number
  /** Its entry in `devices`. */
  yaml: string
}

/** A device with so many gigabytes: a workspace on a GPU, for one, is several times as large as on a CPU. */
export function testDevice(gigabytes: { cpu: number; cuda: number }, kind = chosenKind()): TestMemory {
  const id = kind === 'cuda' ? 'gpu0' : 'cpu0'
  const memory = gigabytes[kind]
  return { kind, id, gigabytes: memory, yaml: `{ id: ${id}, kind: ${kind}, memory_gb: ${memory} }` }
}

/** What serves where a configuration names no device, as the shipped one: every GPU, else the CPU. */
export function shippedKind(): 'cpu' | 'cuda' {
  return cudaDevices() > 0 ? 'cuda' : 'cpu'
}

/** GPUs that can be used here. */
export function cudaDevices(): number {
  return loadAddon()
    .devices()
    .filter(({ kind }) => kind === 'cuda').length
}

function chosenKind(): 'cpu' | 'cuda' {
  const chosen = process.env.EDGESHIFT_TEST_DEVICE ?? 'cpu'
  if (chosen !== 'cpu' && chosen !== 'cuda') throw new Error(`EDGESHIFT_TEST_DEVICE: cpu or cuda, not ${chosen}`)
  return chosen
}
