(module
  (memory (export "memory") 1)
  (type $other (func (result i32)))
  (table funcref (elem $main))
  (func $main (export "_start")
    (drop (call_indirect (type $other) (i32.const 0)))))
