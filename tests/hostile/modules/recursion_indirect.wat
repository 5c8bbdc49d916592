(module
  (memory (export "memory") 1)
  (type $plain (func))
  (table funcref (elem $main))
  (func $main (export "_start")
    (call_indirect (type $plain) (i32.const 0))
    (call_indirect (type $plain) (i32.const 0))))
