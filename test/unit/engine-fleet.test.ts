import { expect, it } from 'vitest'
import { parseConfig } from '../../engine/config/index.js'
import { EngineFleet, type Supervised } from '../../gateway/engine-client/fleet.js'
import { EngineOperator } from '../../gateway/engine-client/operator.js'
import { Pins } from '../../gateway/engine-client/pins.js'
import type { EngineSession } from '../../gateway/engine-client/session.js'
import { Waiters } from '../../gateway/engine-client/waiters.js'
import {
  DeviceStatus,
  type EngineClient,
  EngineStatus,
  VariantState,
  VariantStatus,
} from '../../proto/gen/edgeshift/v1/engine.js'

/** An engine of one device that has one resident variant and does what an operator asks. */
class FakeEngine implements Supervised {
  readonly state = 'up'
  readonly lastExit = undefined
  readonly session = {} as EngineSession
  pinned = false
  /** How many sequences it runs: the engine with fewer is asked first. */
  running = 0

  constructor(readonly device: string) {}

  get variant(): VariantStatus {
    const { device, running, pinned } = this
    return VariantStatus.create({ name: 'm:int4', model: 'm', device, state: VariantState.READY, running, pinned })
  }

  get status(): EngineStatus {
    const devices = [DeviceStatus.create({ id: this.device, budgetBytes: 1000 })]
    return EngineStatus.create({ variants: [this.variant], devices })
  }

  readonly client = {
    pin: ({ pinned }: { pinned: boolean }, reply: (error: null, variant: VariantStatus) => void) => {
      this.pinned = pinned
      queueMicrotask(() => reply(null, this.variant))
      return { cancel: () => undefined }
    },
  } as unknown as EngineClient

  start(): void {}
  async stop(): Promise<void> {}
  setHangAfter(): void {}
  async refresh(): Promise<void> {}
  async confirm(): Promise<void> {}
}

function modelOf(id: string, pin: boolean) {
  const text = `models: [{ id: ${id}, placement: { pin: ${pin} }, variants: [{ precision: int4, path: none }] }]`
  const [model] = parseConfig(text, 'models.yaml').models
  if (!model) throw new Error('no model')
  return model
}

it('an operator pins and unpins a rung at every engine that has it', async () => {
  const [one, two] = [new FakeEngine('one'), new FakeEngine('two')]
  const pins = new Pins({ models: [] })
  const operator = new EngineOperator(new EngineFleet([one, two], new Waiters()), pins)
  expect(await operator.pin('m:int4', true)).toMatchObject({ device: 'one', pinned: true })
  expect([one.pinned, two.pinned]).toEqual([true, true])
  // For engines that start later.
  expect(pins.args).toEqual(['--pin', 'm:int4'])
  one.running = 3
  expect(await operator.pin('m:int4', false)).toMatchObject({ device: 'two', pinned: false })
  expect([one.pinned, two.pinned]).toEqual([false, false])
  expect(pins.args).toEqual(['--unpin', 'm:int4'])
})

it('what an operator pinned holds until the file says something new of the model', () => {
  const file = (pin: boolean, ...ids: string[]) => ({ models: ids.map((id) => modelOf(id, pin)) })
  const pins = new Pins(file(false, 'a', 'b'))
  pins.tell('a:int4', true)
  pins.tell('b:int4', true)
  pins.follow(file(false, 'b', 'a'))
  expect(pins.args).toEqual(['--pin', 'a:int4', '--pin', 'b:int4'])
  pins.follow(file(false, 'b'))
  expect(pins.args).toEqual(['--pin', 'b:int4'])
  pins.follow(file(true, 'b'))
  expect(pins.args).toEqual([])
})

it('a rung is shown as pinned while any engine keeps it', async () => {
  const [one, two] = [new FakeEngine('one'), new FakeEngine('two')]
  two.pinned = true
  const operator = new EngineOperator(new EngineFleet([one, two], new Waiters()), new Pins({ models: [] }))
  expect((await operator.residency()).variants).toMatchObject([{ name: 'm:int4', device: 'one', pinned: true }])
})
