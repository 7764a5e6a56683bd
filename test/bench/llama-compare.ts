/**
 * Our CPU engine against llama.cpp on the embedded model's file, in turn, with the same threads:
 * `npm run bench:llama -- [rounds]`. llama.cpp is the prebuilt library in node-llama-cpp's platform package, installed
 * on first use into .cache/; it picks the machine's instruction set itself, as ours does.
 */
import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { percentile, short } from './figures.js'

const LLAMA_VERSION = '3.22.1'
const THREADS = '2'
const rounds = Number(process.argv[2] ?? 5)
const root = fileURLToPath(new URL('../../', import.meta.url))
const at = (path: string): string => `${root}${path}`
const platform = `${process.platform}-${process.arch}`
const library = at(`.cache/llama/node_modules/@node-llama-cpp/${platform}/bins/${platform}`)

if (!existsSync(library)) {
  const name = `@node-llama-cpp/${platform}@${LLAMA_VERSION}`
  execFileSync('npm', ['install', '--prefix', at('.cache/llama'), '--no-save', '--ignore-scripts', name], {
    stdio: 'inherit',
  })
}
execFileSync(process.execPath, [at('scripts/build-native.mjs'), '--tests'], { stdio: 'inherit' })

type Figures = Record<'prefill256' | 'decode1' | 'decode8' | 'decode16' | 'weightBytes', number>

function measure(args: string[]): Figures {
  return JSON.parse(execFileSync(process.execPath, args, { encoding: 'utf8', cwd: root })) as Figures
}

const ours: Figures[] = []
const theirs: Figures[] = []
const bandwidths: number[] = []
const model = at('models/smollm2-135m-instruct-q4_1.gguf')
for (let round = 0; round < rounds; round++) {
  theirs.push(measure([at('test/bench/llama-peer.mjs'), library, model, THREADS]))
  ours.push(measure(['--import', 'tsx', at('test/bench/engine-peer.ts'), 'int4', THREADS]))
  bandwidths.push(Number(execFileSync(at('build/native/bandwidth_bench'), [THREADS], { encoding: 'utf8' })))
}

const median = (values: number[]): number => percentile(values, 0.5)
console.log(`\nSmolLM2-135M Q4_1, ${THREADS} threads, tokens/s, medians of ${rounds} rounds`)
console.log('                 ours (int4)   llama.cpp   ratio (median; each round)')
for (const key of ['prefill256', 'decode1', 'decode8', 'decode16'] as const) {
  const ratios = ours.map((figures, i) => figures[key] / (theirs[i]?.[key] ?? Number.NaN))
  const cells = [short(median(ours.map((f) => f[key]))), short(median(theirs.map((f) => f[key])))]
  console.log(
    `${key.padEnd(12)} ${cells.map((c) => c.padStart(12)).join('')}   ${short(median(ratios))}  (${ratios.map((r) => r.toFixed(2)).join(' ')})`,
  )
}
const bandwidth = median(bandwidths)
const read = (median(ours.map((f) => f.decode1)) * (ours[0]?.weightBytes ?? 0)) / 1e9
console.log(
  `read bandwidth ${short(bandwidth)} GB/s; decoding one sequence reads ${short(read)} GB/s of weights (${Math.round((read / bandwidth) * 100)}%)`,
)
