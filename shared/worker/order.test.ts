import { expect, test } from 'bun:test'
import fc from 'fast-check'
import { Order } from './order.ts'

test('writes down nothing where each delivery is implied', () => {
  const order = new Order('')
  for (let n = 0; n < 100; n++) {
    order.decide(n, true)
    order.delivered()
  }
  expect(order.text).toBe('')
  expect(order.isUnstored).toBe(false)
})

test('puts neighbours together', () => {
  const order = new Order('')
  const deliveries = [0, 1, 12, 15, 16, 17, 3, 18]
  deliveries.forEach((entry, position) => void order.decide(entry, position < 2 || position === 6))
  expect(order.text).toBe('2:12,15-17;7:18')
})

test('says how far it was decided, though all of it is implied', () => {
  const order = new Order('')
  for (const entry of [0, 1, 2]) order.decide(entry, true)
  order.pin()
  order.pin()
  expect(order.text).toBe('2:2')
  order.decide(9, false)
  order.pin()
  expect(order.text).toBe('2:2,9')
  const again = new Order('2:2')
  again.pin()
  expect(again.text).toBe('2:2')
})

test('whatever is delivered is read again, and goes on from there', () => {
  const deliveries = fc.array(fc.record({ entry: fc.nat({ max: 30 }), implied: fc.boolean() }), { maxLength: 60 })
  fc.assert(
    fc.property(deliveries, fc.nat({ max: 60 }), (all, cut) => {
      const whole = new Order('')
      for (const { entry, implied } of all) whole.decide(entry, implied)
      let resumed = new Order('')
      for (const [position, { entry, implied }] of all.entries()) {
        if (position === cut) {
          // A run that begins anew delivers what was decided, and decides on.
          resumed = new Order(resumed.text)
          for (const before of all.slice(0, position)) {
            expect(resumed.written).toBe(before.implied ? undefined : before.entry)
            resumed.delivered()
          }
        }
        resumed.decide(entry, implied)
        if (position >= cut) resumed.delivered()
      }
      expect(resumed.text).toBe(whole.text)
      expect(new Order(whole.text).text).toBe(whole.text)
      const earlier = new Order('')
      for (const { entry, implied } of all.slice(0, cut)) earlier.decide(entry, implied)
      expect(whole.before(cut)).toBe(earlier.text)
    }),
  )
})

test('knows what the store does not', () => {
  const order = new Order('1:5')
  expect(order.isUnstored).toBe(false)
  order.delivered()
  order.delivered()
  order.decide(9, false)
  expect(order.isUnstored).toBe(true)
  const { text, size } = order
  order.decide(8, false)
  order.stored(size)
  expect(text).toBe('1:5,9')
  expect(order.isUnstored).toBe(true)
})
