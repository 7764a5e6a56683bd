// Builds the native addon (and, with --tests, the C++ tests and benchmarks) into build/native.
// CUDA is built when asked for (--cuda), where an earlier build had it, or where both nvcc and a device are found; --cpu
// leaves it out. --check-cuda only compiles the CUDA sources, for one architecture, into build/cuda-check.
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const flags = new Set(process.argv.slice(2))
/** What the kernels are written for; the CI check takes the one with the most paths. */
const ARCHITECTURES = [80, 86, 89, 90, 120]
const CHECKED_ARCHITECTURE = 90
const TOOLKIT = 'the CUDA toolkit 12.8 or newer (nvcc on the PATH or in CUDA_HOME/bin)'

const has = (command) => spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0

function requireTools() {
  const missing = [
    ['cmake', ['cmake'], 'CMake 3.20 or newer (Debian and Ubuntu: apt install cmake; macOS: brew install cmake)'],
    [
      'a C++20 compiler',
      [process.env.CXX ?? 'c++', 'g++', 'clang++'],
      'a C++20 compiler (Debian and Ubuntu: apt install g++)',
    ],
    ['make or ninja', ['ninja', 'make', 'gmake'], 'make or Ninja (Debian and Ubuntu: apt install make)'],
  ].filter(([, commands]) => !commands.some(has))
  if (missing.length === 0) return
  console.error(`edgeshift needs ${missing.map(([, , hint]) => hint).join(' and ')} to build its native part.`)
  process.exit(1)
}

/** Path of nvcc, also where it is installed but not on the PATH; undefined when there is none. */
function findNvcc() {
  const homes = [process.env.CUDA_HOME, process.env.CUDA_PATH, '/usr/local/cuda'].filter(Boolean)
  return ['nvcc', ...homes.map((home) => join(home, 'bin', 'nvcc'))].find(has)
}

const output = (command, args) => spawnSync(command, args, { encoding: 'utf8' }).stdout ?? ''

/** Architectures of this machine's GPUs, as the driver's own tool tells. */
function ownArchitectures() {
  const text = output('nvidia-smi', ['--query-gpu=compute_cap', '--format=csv,noheader'])
  return [...new Set([...text.matchAll(/^(\d+)\.(\d)$/gm)].map(([, major, minor]) => Number(major + minor)))]
}

/** Those of the list that this nvcc can build. */
function buildable(nvcc, wanted) {
  const known = new Set(
    [...output(nvcc, ['--list-gpu-arch']).matchAll(/compute_(\d+)/g)].map(([, arch]) => Number(arch)),
  )
  return known.size === 0 ? wanted : wanted.filter((arch) => known.has(arch))
}

function cmake(args) {
  const result = spawnSync('cmake', args, { stdio: 'inherit', cwd: root })
  if (result.status !== 0) process.exit(result.status ?? 1)
}

function make(build, ...args) {
  cmake(['--build', build, '--parallel', String(availableParallelism()), ...args])
}

function configure(build, options) {
  const generator = has('ninja') && !existsSync(join(build, 'CMakeCache.txt')) ? ['-G', 'Ninja'] : []
  const definitions = Object.entries(options).map(([name, value]) => `-D${name}=${value}`)
  cmake(['-S', join(root, 'native'), '-B', build, ...generator, ...definitions])
}

function cudaOptions(nvcc, architectures) {
  const list = buildable(nvcc, architectures)
  if (list.length === 0) {
    console.error(
      `${nvcc} builds none of the GPU architectures ${architectures.join(', ')}; edgeshift needs ${TOOLKIT}.`,
    )
    process.exit(1)
  }
  return { EDGESHIFT_CUDA: 'ON', EDGESHIFT_CUDA_ARCHITECTURES: list.join(';'), CMAKE_CUDA_COMPILER: nvcc }
}

const hadCuda = (build) => {
  const cache = join(build, 'CMakeCache.txt')
  return existsSync(cache) && readFileSync(cache, 'utf8').includes('EDGESHIFT_CUDA:BOOL=ON')
}

/** Definitions that choose the backends, with a line to the user where a GPU cannot be used. */
function backends(build, nvcc) {
  const off = { EDGESHIFT_CUDA: 'OFF' }
  if (flags.has('--cpu')) return off
  const deviceFound = existsSync('/dev/nvidia0') || existsSync('/dev/dxg')
  if (nvcc === undefined) {
    if (flags.has('--cuda')) {
      console.error(`edgeshift needs ${TOOLKIT} to build its CUDA backend.`)
      process.exit(1)
    }
    if (deviceFound) console.warn(`There is a GPU, but building for it needs ${TOOLKIT}: building for the CPU only.`)
    return off
  }
  // For every supported card when asked for, else for the cards of this machine: that takes a fifth of the time.
  if (flags.has('--cuda')) return cudaOptions(nvcc, ARCHITECTURES)
  if (deviceFound) {
    const own = ownArchitectures()
    return cudaOptions(nvcc, own.length > 0 ? own : ARCHITECTURES)
  }
  return hadCuda(build) ? {} : off
}

/** Compiles the CUDA sources, tests and benchmarks, where nvcc is found: so they never rot on machines without a GPU. */
function checkCuda() {
  const nvcc = findNvcc()
  if (nvcc === undefined) {
    console.log('skipped: no nvcc')
    return
  }
  const build = join(root, 'build', 'cuda-check')
  configure(build, { ...cudaOptions(nvcc, [CHECKED_ARCHITECTURE]), EDGESHIFT_ADDON: 'OFF', EDGESHIFT_TESTS: 'ON' })
  make(build, '--target', 'edgeshift_cuda_check', 'edgeshift_hopper', 'edgeshift_hopper_ptx')
}

requireTools()
if (flags.has('--check-cuda')) checkCuda()
else {
  const build = join(root, 'build', 'native')
  const tests = flags.has('--tests')
  const nvcc = findNvcc()
  configure(build, { ...backends(build, nvcc), EDGESHIFT_TESTS: tests ? 'ON' : 'OFF' })
  make(build, ...(tests ? [] : ['--target', 'edgeshift_addon']))
}
