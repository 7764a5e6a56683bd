import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { spawnSync } from 'node:child_process'
import { Registry } from 'prom-client'
import { describe, expect, it } from 'vitest'
import { DEFAULT_RESTART_POLICY, decideRestart } from '../../gateway/engine-client/restart-policy.js'
import { removeStaleSocketDirs } from '../../gateway/engine-client/socket-dir.js'
import { StepHistogram } from '../../gateway/step-histogram.js'

describe('decideRestart', () => {
  it.each([
    [0, 60_000, 0, { crashes: 1, delayMs: 100, crashLoop: false }],
    [4, 60_000, 0, { crashes: 1, delayMs: 100, crashLoop: false }],
    [4, 10, 16, { crashes: 1, delayMs: 100, crashLoop: false }],
    [1, 10, 15, { crashes: 2, delayMs: 200, crashLoop: false }],
    [4, 10, 0, { crashes: 5, delayMs: 1600, crashLoop: false }],
    [5, 10, 0, { crashes: 6, delayMs: 3200, crashLoop: true }],
    [40, 10, 0, { crashes: 41, delayMs: 30_000, crashLoop: true }],
  ])('after %d rapid crashes, %d ms of service and %d steps', (before, servedMs, steps, decision) => {
    expect(decideRestart(DEFAULT_RESTART_POLICY, before, { servedMs, steps })).toEqual(decision)
  })
})

describe('removeStaleSocketDirs', () => {
  it('removes only folders whose process is gone', () => {
    const parent = mkdtempSync(join(tmpdir(), 'es-test-'))
    const gone = spawnSync(process.execPath, ['-e', '']).pid
    const stale = `edgeshift-${gone}-abcdef`
    const names = [stale, `edgeshift-${process.pid}-abcdef`, 'edgeshift-x-abcdef', 'other']
    for (const name of names) mkdirSync(join(parent, name))
    writeFileSync(join(parent, stale, 'engine-1.sock'), '')
    expect(removeStaleSocketDirs(parent)).toEqual([join(parent, stale)])
    expect(names.map((name) => existsSync(join(parent, name)))).toEqual([false, true, true, true])
    rmSync(parent, { recursive: true })
  })
})

describe('StepHistogram', () => {
  it('exports cumulative buckets, sum and count per label set', async () => {
    const registry = new Registry()
    const histogram = new StepHistogram(registry, 'edgeshift_x_seconds', 'X.', [0.1, 1])
    const series = histogram.series({ model: 'a' })
    expect(histogram.series({ model: 'a' })).toBe(series)
    series.observe(0.1)
    series.observe(0.5, 3)
    series.observe(7)
    const lines = (await registry.metrics()).split('\n').filter((line) => line && !line.startsWith('# HELP'))
    expect(lines).toEqual([
      '# TYPE edgeshift_x_seconds histogram',
      'edgeshift_x_seconds_bucket{model="a",le="0.1"} 1',
      'edgeshift_x_seconds_bucket{model="a",le="1"} 4',
      'edgeshift_x_seconds_bucket{model="a",le="+Inf"} 5',
      'edgeshift_x_seconds_sum{model="a"} 8.6',
      'edgeshift_x_seconds_count{model="a"} 5',
    ])
  })
})
