// Builds the native addon (and, with --tests, the C++ tests and benchmarks) into build/native.
// CUDA is built when asked for (--cuda), or by default where both nvcc and a device are found.
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const flags = new Set(process.argv.slice(2))

const has = (command) => spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0

const missing = [
  ['cmake', ['cmake'], 'CMake 3.20 or newer (Debian and Ubuntu: apt install cmake; macOS: brew install cmake)'],
  [
    'a C++20 compiler',
    [process.env.CXX ?? 'c++', 'g++', 'clang++'],
    'a C++20 compiler (Debian and Ubuntu: apt install g++)',
  ],
  ['make or ninja', ['ninja', 'make', 'gmake'], 'make or Ninja (Debian and Ubuntu: apt install make)'],
].filter(([, commands]) => !commands.some(has))
if (missing.length > 0) {
  console.error(`edgeshift needs ${missing.map(([, , hint]) => hint).join(' and ')} to build its native part.`)
  process.exit(1)
}

const deviceFound = existsSync('/dev/nvidia0') || existsSync('/dev/dxg')
const cuda = flags.has('--cuda') || (deviceFound && has('nvcc'))
const tests = flags.has('--tests')
const build = join(root, 'build', 'native')
const generator = has('ninja') ? ['-G', 'Ninja'] : []

function run(args) {
  const result = spawnSync('cmake', args, { stdio: 'inherit', cwd: root })
  if (result.status !== 0) process.exit(result.status ?? 1)
}

run([
  '-S',
  join(root, 'native'),
  '-B',
  build,
  ...(existsSync(join(build, 'CMakeCache.txt')) ? [] : generator),
  `-DEDGESHIFT_CUDA=${cuda ? 'ON' : 'OFF'}`,
  `-DEDGESHIFT_TESTS=${tests ? 'ON' : 'OFF'}`,
])
run(['--build', build, '--parallel', ...(tests ? [] : ['--target', 'edgeshift_addon'])])
